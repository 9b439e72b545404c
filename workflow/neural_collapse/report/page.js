
"use strict";
// A sign of a matrix, pointed at, tapped or reached by keyboard, says its numbers beneath.
for (const sign of document.querySelectorAll(".matrix button")) {
  const show = () => {
    document.getElementById("detail").textContent = sign.title;
    for (const other of document.querySelectorAll(".matrix .shown")) other.classList.remove("shown");
    sign.classList.add("shown");
  };
  for (const event of ["mouseenter", "focus", "click"]) sign.addEventListener(event, show);
}
// Sorts a table by the column whose title is clicked; numbers by value, dashes always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.textContent.trim();
        return { number: cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort), text };
      };
      const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...key(row) }));
      const numeric = rows.some((entry) => !Number.isNaN(entry.number));
      rows.sort((a, b) => {
        if (numeric) {
          const missing = Number.isNaN(a.number) - Number.isNaN(b.number);
          if (missing) return missing;
          return (a.number - b.number || 0) * (down ? -1 : 1);
        }
        return a.text.localeCompare(b.text, "en", { numeric: true }) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows.map((entry) => entry.row));
    });
  });
}
