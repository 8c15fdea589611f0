"""Parts of compare_llama_cpp.py; bench_check.py and speed_picture.py share some."""
