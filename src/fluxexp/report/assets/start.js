// Sets the page going.
function startCopying() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
    });
  }
  for (const button of document.querySelectorAll("[data-point]")) {
    button.addEventListener("click", () => {
      document.dispatchEvent(new CustomEvent("point", { detail: { point: Number(button.dataset.point) } }));
    });
  }
}

function startPairs() {
  const box = $("all-metrics");
  box?.addEventListener("change", () => $("pairs").classList.toggle("judge-only", !box.checked));
}

startPairs();
startViewer();
startGallery();
startGrid();
startCopying();
drawCharts();
