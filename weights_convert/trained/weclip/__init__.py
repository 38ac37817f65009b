"""WeCLIP's and WTCLIP's trained weights."""
