// Starts the page: connects the controls, and draws the gallery, the grid and the plots.
function startButtons() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        // The browser refused access to the clipboard: select the text, so that the user can copy it.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected, copy it";
      }
    });
  }
  for (const button of document.querySelectorAll("[data-point]")) {
    button.addEventListener("click", () => {
      document.dispatchEvent(new CustomEvent("point", { detail: { point: Number(button.dataset.point), opener: button } }));
    });
  }
}

// The table of comparisons shows only the quality metric, or all metrics.
function startPairs() {
  const box = $("all-metrics");
  box?.addEventListener("change", () => $("pairs").classList.toggle("quality-only", !box.checked));
}

startPairs();
startViewer();
startGallery();
startGrid();
startButtons();
drawCharts();
