"""What a published version is. Shared by export, serving and benchmarks; imports the standard library only."""
