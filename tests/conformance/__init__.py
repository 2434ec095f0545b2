"""What docs/protocol.md promises, as transcripts that can be played against any endpoint.

    python -m tests.conformance ENDPOINT [WORD]       all transcripts, or those with WORD in their name

transcripts/*.txt are what is said, transcript.py reads them, expect.py compares, player.py has the socket. Nothing here
imports embedpool: what is checked is the page, against whoever answers.
"""
