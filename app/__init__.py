"""The app: the factory, the files and the graph at work, to look at. `streamlit run app/main.py`."""
