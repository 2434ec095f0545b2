"""Traces: what became of a request, as OpenTelemetry's spans. Loaded only where `--traces` asks for it.

1. context    W3C Trace Context: whose trace a request belongs to, and whether it is recorded. Pure
2. records    what the router notes of a request (router.traces), and the packets in which it leaves it (router.outlet). Pure
3. stages     a record to stages with their moments and attributes. Pure
4. spans      stages to spans, in a process of its own (`python -m embedpool.traces`): the only OpenTelemetry of a pool
5. exporting  where the spans go, and what is lost when they cannot

Not in the router: making and encoding a request's spans takes longer than everything else that the router does for it, and a
thread for it would hold the interpreter's lock just then. Not in the supervisor: it has no library that could take it down.
"""
