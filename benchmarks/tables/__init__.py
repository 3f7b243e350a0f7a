"""What people see of a report: tables in five formats, charts, contact sheets, and estimates."""
