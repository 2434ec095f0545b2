"""HTTP for a pool: an ordinary client of it that speaks the dialects of AkiDB, Text Embeddings Inference and OpenAI.

The way of a request, which is also the order in which to read the code:

1. listening   a socket, heads of bounded size and time
2. app         route, key, place among the concurrent ones; the one boundary where errors become responses
3. reading     body to a typed request, headers to wishes (deadline, priority, prompt)
4. akidb, tei, openai   one file per dialect: its routes, its limits, its texts
5. service     the pool is asked, unless the client hangs up first
6. rendering   vectors to JSON, or to their plain bytes

Beside it, where it is asked for: grpc_akidb, AkiDB's gRPC over the same service, with its messages in akidb_messages.
"""
