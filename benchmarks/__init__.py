"""Measurements that documentation quotes; `make bench-table` and the like run them."""
