"""Where images come from: archives prepared, data sets loaded, and streams decoded."""
