"""The pending work of a shard, what it costs, and which phase run is next."""
