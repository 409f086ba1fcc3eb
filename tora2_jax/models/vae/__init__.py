"""The causal 3D VAE of CogVideoX."""
