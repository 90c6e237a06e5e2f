"""Between the machines: Flower, the gateways in front of it, and the processes of a side."""
