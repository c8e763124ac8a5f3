"""Slurm, read and controlled: one typed client over Slurm's commands, or pyslurm where it fits the cluster.

    from slurm.backend import connect

    client = connect()
    waiting = [job for job in client.jobs() if job.state.pending]
    free = sum(node.free_gpus_by_type.get("h100", 0) for node in client.nodes())

`model` has the records, `client` the protocol, `errors` what can go wrong. Knows nothing of the rest of Headgate, needs
the standard library only, and imports nothing until it is asked for.
"""
