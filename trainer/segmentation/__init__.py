"""Tasks whose answer is a mask: DICOM series with DICOM SEG masks, Dice."""
