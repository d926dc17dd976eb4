"""How a masked network is trained: settings, images on the device, steps, the loop."""
