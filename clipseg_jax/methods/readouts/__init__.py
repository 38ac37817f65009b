"""Training-free read-outs of CLIP's ViT: SCLIP, NACLIP, ClearCLIP, SC-CLIP, ResCLIP, ProxyCLIP."""
