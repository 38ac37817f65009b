"""What a loop needs to know of a method, one file each."""
