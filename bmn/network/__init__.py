"""What the network is made of beside its layers."""
