"""The engines that a checkpoint can become, one file each."""
