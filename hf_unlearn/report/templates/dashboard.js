// A click on a heading sorts its table by that column, and a second one the other way round; what has no key is last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const status = table.parentElement.parentElement.querySelector("[role=status]");
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.dataset.kind === "number";
    const key = line => line.cells[column].dataset.key;
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => isNumber ? a - b : a.localeCompare(b, "en", {numeric: true});
    const lines = [...body.rows].sort((one, other) => {
      const a = key(one), b = key(other);
      return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
    });
    body.append(...lines);
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    status.textContent = `Sorted by ${head.textContent.trim()}, ${order}`;
  }));
}
