"""Preparing the runtime: the worker's own interpreter with torch, made once, on the first "Contribute GPU".

The installed app is small because torch is not in it: the build that suits the machine is installed from a lock file
with hashes, by the `uv` that comes with the app, into a folder of the volunteer's own.
"""
