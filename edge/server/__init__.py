"""The OpenAI-compatible server. The only importer of fastapi, uvicorn and prometheus_client."""
