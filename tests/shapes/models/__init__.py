"""A shop, and views of every shape over it."""

from .base import Shape
from .grouped import *  # noqa: F403
from .rows import *  # noqa: F403
from .sources import Customer, Order, Product, Region, Tag
from .staged import *  # noqa: F403

__all__ = ["Customer", "Order", "Product", "Region", "Shape", "Tag"]
