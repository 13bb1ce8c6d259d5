"""By keys or in full: what each costs in the shapes of dashboards, and which one is chosen."""
