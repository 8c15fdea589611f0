"""Parts of compare_llama_cpp.py."""
