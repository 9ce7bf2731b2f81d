"""Real servers that tests run against, built from pinned versions, and a proxy that injects faults before them."""
