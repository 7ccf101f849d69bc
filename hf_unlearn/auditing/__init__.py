"""Has it forgotten? Pure functions of arrays, and one place that collects them."""
