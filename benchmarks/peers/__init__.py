"""What raybatch is compared with. Each module is a process of its own that prints one JSON line."""
