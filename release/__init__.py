"""What a published version is: names, files, manifest, stamps. Shared by export, serving and benchmarks."""
