"""Ray Train lanes owned by the driver, and Ray Tune runs over them."""
