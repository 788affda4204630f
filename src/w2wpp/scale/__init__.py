"""The same work on many machines: tasks handed out to workers, results taken in order, whatever happens to the workers.

Which task goes to whom is decided in plain Python (`schedule`, `in_order`); Ray is imported by `ray_pool` alone. Nothing here
trains: a worker calls what one process calls.
"""
