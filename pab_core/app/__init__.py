"""The studio: a page in the browser on the same core as the command line and the nodes. `launch.serve` starts it.

settings -> request (what was filled in) -> jobs (queue) -> making (rendering, files) -> history; studio lays the page
out.
"""
