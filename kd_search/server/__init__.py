"""A gallery in the browser: an API in JSON, and one static page that uses it.

``kd-search serve`` runs it. FastAPI and uvicorn are imported by its modules, torch and Detectron2
by none.
"""
