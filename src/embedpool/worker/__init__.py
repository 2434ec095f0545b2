"""A worker process: jobs in, rows written into shared memory (main, job), micro-batches (batching, pure)."""
