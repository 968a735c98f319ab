"""Windows, where the system makes the connections."""
