"""What people take masks to: COCO annotations, stored scores, a contact sheet."""
