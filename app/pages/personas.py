"""To come."""

import streamlit as st

st.title("Personas", anchor=False)
