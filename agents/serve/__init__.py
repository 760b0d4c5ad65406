"""Serve a graph or a persona to whatever speaks the OpenAI chat protocol. Run: `python -m agents.serve module:graph --port 8080`.

Does: chat completions (whole and streamed), threads and interrupts, limits, metrics. Does not: TLS, users, or several processes;
put a reverse proxy in front for those.
"""
