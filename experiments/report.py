NAME = "report.html"
def write(folder):
    (folder/NAME).write_text("x"); return folder/NAME
