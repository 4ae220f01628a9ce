// A click on a heading sorts the rows, numbers the largest first; a second click turns them round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].textContent;
    return column ? (text === "-" ? -1 : parseFloat(text.replaceAll(",", ""))) : text;
  };
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const first = column ? "descending" : "ascending", other = column ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (column ? a - b : a.localeCompare(b));
    [...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column))).forEach((r) => body.append(r));
  }));
}
