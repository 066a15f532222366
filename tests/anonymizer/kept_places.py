"""Attributes that are kept as they come, because what they may hold identifies nobody: no marks go there.

A mark in any other place must not survive. Whoever lets another attribute stay has to name it here, with a
reason.
"""

from __future__ import annotations

from typing import Final

_PLACES: Final = {
    "Table E.1-1 keeps them under Retain Patient Characteristics; they describe, and name nobody": """
        EthnicGroup MeasuredAPDimension MeasuredLateralDimension PatientBodyMassIndex PatientSex
        PatientSexNeutered PatientSize PatientWeight PregnancyStatus SmokingStatus
    """,
    "code strings: PS3.3 gives enumerated values or defined terms": """
        AcquisitionContrast AcquisitionTimeSynchronized AnatomicalOrientationType AngioFlag
        ApplicableSafetyStandardAgency ArterialSpinLabelingContrast BeatRejectionFlag
        BrachyTreatmentTechnique BrachyTreatmentType BulkMotionCompensationTechnique
        BulkMotionSignalSource CardiacBeatRejectionTechnique CardiacSignalSource
        CardiacSynchronizationTechnique ColorSpace ComplexImageComponent ContentQualification
        ContrastBolusIngredient CoverageOfKSpace DetectorPositioningType DimensionOrganizationType
        EchoPlanarPulseSequence EchoPulseSequence ExposureModulationType FilterMaterial
        FunctionalSettlingPhaseFramesPresent GeometryOfKSpaceTraversal GraphicType ImageLaterality
        ImageType InPlanePhaseEncodingDirection KSpaceFiltering Laterality LongitudinalTemporalEventType
        LossyImageCompression LossyImageCompressionMethod MultiPlanarExcitation MultienergyCTAcquisition
        MultipleSpinEcho OversamplingPhase PatientOrientation PatientPosition PhaseContrast
        PixelOriginInterpretation PixelPresentation PixelSpacingCalibrationType PlanIntent PreliminaryFlag
        PresentationLUTShape QualityControlImage QualityControlSubject QueryRetrieveView
        RectilinearPhaseEncodeReordering ResonantNucleus RespiratoryMotionCompensationTechnique
        RespiratorySignalSource RespiratoryTriggerType ResponsiblePersonRole SOPInstanceStatus
        SaturationRecovery ScanArcType SegmentationFractionalType SegmentedKSpaceTraversal ShutterShape
        SliceProgressionDirection SpatialTransformOfDose SpectrallySelectedSuppression
        SteadyStatePulseSequence StereoPairsPresent SynchronizationTrigger SyntheticData TemporalRangeType
        TimeDistributionProtocol TimeOfFlightContrast TissueHeterogeneityCorrection TypeOfPatientID
        VOILUTFunction VariableFlipAngleFlag VolumeBasedCalculationTechnique VolumetricProperties
    """,
    "numbers: what is measured, set or counted": """
        BluePaletteColorLookupTableData GreenPaletteColorLookupTableData RedPaletteColorLookupTableData
        SegmentedBluePaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
        SegmentedRedPaletteColorLookupTableData
        AcquisitionDuration AcquisitionNumber B1rms CTDIvol CalciumScoringMassFactorDevice
        CalciumScoringMassFactorPatient CardiacNumberOfImages CardiacRRIntervalSpecified
        CenterOfCircularShutter ConcatenationFrameOffsetNumber ContrastBolusIngredientConcentration
        ContrastBolusTotalDose ContrastBolusVolume ContrastFlowDuration ContrastFlowRate
        DVHNormalizationDoseValue DVHNormalizationPoint DataCollectionCenterPatient DeviationIndex
        DistanceSourceToDetector DistanceSourceToPatient EchoNumbers EnergyWeightingFactor
        EstimatedDoseSaving ExposureIndex ExposureInuAs ExposureTime
        FrameOfReferenceToDisplayedCoordinateSystemTransformationMatrix GeneratorPower GraphicData
        HeartRate HighRRValue ImageAndFluoroscopyAreaDoseProduct ImageOrientationSlide ImagesInAcquisition
        InConcatenationNumber InConcatenationTotalNumber InstanceNumber IntervalsAcquired
        IntervalsRejected InversionTime IsocenterPosition LongitudinalTemporalOffsetFromEvent LowRRValue
        MagneticFieldStrength MaximumFractionalValue NominalInterval NormalizationPoint
        NumberOfKSpaceTrajectories NumberOfPhaseEncodingSteps PatientSupportAngle PercentSampling
        PixelBandwidth RadiusOfCircularShutter ReconstructionDiameter ReconstructionTargetCenterPatient
        ReferencedSamplePositions ReferencedTimeOffsets RelativeXRayExposure
        RespiratoryTriggerDelayThreshold SAR ShutterLeftVerticalEdge ShutterLowerHorizontalEdge
        ShutterPresentationColorCIELabValue ShutterPresentationValue ShutterRightVerticalEdge
        ShutterUpperHorizontalEdge SkipBeats SliceLocation SpacingBetweenSlices SpatialResolution
        SpiralPitchFactor SynchronizationChannel TableFeedPerRotation TableSpeed TableTopLateralPosition
        TableTopLongitudinalPosition TableTopPitchAngle TableTopRollAngle TargetExposureIndex
        TotalPixelMatrixColumns TotalPixelMatrixFocalPlanes TotalPixelMatrixRows TriggerTime TriggerWindow
        VerticesOfThePolygonalShutter WaterEquivalentDiameter WaveformDataDisplayScale
        WaveformDisplayBackgroundCIELabValue XRayTubeCurrent dBdt
    """,
    "what a maker or the software writes: makes, models, versions, coils, kernels, filters, sequences": """
        AcquisitionDeviceProcessingCode CardiacFramingType CollimatorGridName ContrastBolusRoute
        DetectorManufacturerModelName DetectorManufacturerName
        ConvolutionKernel FilterType ImagedNucleus Manufacturer ManufacturerModelName PhosphorType
        PlateType PositionReferenceIndicator PulseSequenceName ReceiveCoilName RescaleType SequenceName
        SoftwareVersions TransmitCoilName TriggerSourceOrType
    """,
    "short descriptions that equipment writes, and that Table E.1-1 has no row for": """
        ApplicableSafetyStandardDescription PVCRejection PixelSpacingCalibrationDescription
        StrainNomenclature
    """,
}
KEPT: Final = {keyword: reason for reason, keywords in _PLACES.items() for keyword in keywords.split()}
"""Why a mark may stay, by keyword."""

STEERING: Final = frozenset({
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "PhotometricInterpretation", "BurnedInAnnotation", "RecognizableVisualFeatures", "SpecimenLabelInImage",
    "ConversionType", "SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence",
    "NumberOfFrames", "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "ImageType",
})  # fmt: skip
"""Attributes by whose value an instance is judged or read: another one stops it, as other tests show."""
