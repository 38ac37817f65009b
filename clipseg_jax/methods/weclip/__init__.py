"""WeCLIP and WTCLIP: a head on a frozen CLIP, trained on image labels."""
