"""ReCLIP and ReCLIP++: CLIP's class and position bias, learned and subtracted."""
