"""Switch layers: router, plan, dispatch and experts."""
