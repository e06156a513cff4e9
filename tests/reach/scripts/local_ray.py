"""Runs a script on a small Ray of its own, whose files go to FOLDER: `python local_ray.py FOLDER SCRIPT ARGUMENTS`."""

import runpy
import sys

import ray

if __name__ == "__main__":
    folder, script = sys.argv[1:3]
    ray.init(num_cpus=3, object_store_memory=200_000_000, include_dashboard=False, _temp_dir=folder)
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
