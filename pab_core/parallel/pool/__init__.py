"""A pool of workers: one process a device, which keep a model loaded and make one video after the other.

    host                                      workers, `python -m pab_core.parallel.pool.worker`
    pool.py   queue, handles       pipes      worker.py  the process: pipes, heart-beat, death with its host
    team.py   ranks, faults       <----->     rank.py    what one rank does with a job
    member.py one worker process              group.py   the ranks' process group

Jobs and results are plain data (job.py) in frames of JSON and safetensors (protocol.py); nothing is ever unpickled.
"""
