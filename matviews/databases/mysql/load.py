"""How busy MariaDB or MySQL is."""

from ..base.load import Load, LoadReader

__all__ = ["MySQLLoad"]


class MySQLLoad(LoadReader):
    """The server knows how many threads are running. Only replicas know their lag."""

    known = frozenset({"active_sessions"})

    def read(self) -> Load:
        _name, threads = self.row("SHOW GLOBAL STATUS LIKE 'Threads_running'")
        return Load(active_sessions=int(threads) - 1)
