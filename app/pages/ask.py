"""To come."""

import streamlit as st

st.title("Ask", anchor=False)
