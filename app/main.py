"""The app's pages. Run: `streamlit run app/main.py`.

Does: navigation. Streamlit reads this file twice: as a module once, for its server (`app.access` may refuse to start it), and as
a script for each page it shows.
Does not: lay out a page (`app/pages`) or hold logic (the other modules of `app`, all usable without Streamlit).
"""

import importlib
import sys
import threading
from pathlib import Path

from streamlit.starlette import App

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # `streamlit run` puts only this directory there
    sys.path.insert(0, str(HERE.parent))


def import_ahead() -> None:
    """Import what the first page imports, while the browser still loads Streamlit's own scripts."""
    for name in ("app.why", "app.answers"):
        importlib.import_module(name)


if __name__ == "__main__":
    import streamlit as st

    from app import view

    st.set_page_config(page_title="Penknife", page_icon=str(HERE / "data" / "icon.png"), layout="wide")
    view.style()
    ask, make, compare, personas, runs = (str(HERE / "pages" / f"{name}.py") for name in view.PAGES)
    st.navigation(
        [
            st.Page(ask, title="Ask", icon=":material/forum:", default=True),
            st.Page(make, title="Make", icon=":material/model_training:"),
            st.Page(compare, title="Compare", icon=":material/compare_arrows:"),
            st.Page(personas, title="Personas", icon=":material/person_edit:"),
            st.Page(runs, title="Runs", icon=":material/history:"),
        ],
        position="top",
    ).run()
else:
    from app import access, prefetch

    access.allow_start()
    threading.Thread(target=import_ahead, name="import-ahead", daemon=True).start()
    app = App(__file__, middleware=[*access.middleware(), *prefetch.middleware()], on_script_error=access.reported)
