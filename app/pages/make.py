"""To come."""

import streamlit as st

st.title("Make", anchor=False)
