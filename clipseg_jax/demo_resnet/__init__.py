"""Training of the demo's backbone: what ImageNet's weights are to the published students."""
